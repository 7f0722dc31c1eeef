function displacement = bent_mapping(pairs, mapping, sigma)
% BENT_MAPPING  Return a smooth displacement (x, y, 2), in fixed pixels, that makes pairs of maps agree better.
    if isempty(pairs)
        displacement = [];
        return
    end
    shape = size(pairs{1, 1});
    mapping.displacement = zeros([shape 2], 'single');
    for turn = 1:8
        h = zeros([shape 5]);
        for n = 1:size(pairs, 1)
            t = opticstream.linearised_pair(pairs{n, 1}, opticstream.resampled(pairs{n, 2}, mapping, shape));
            if isempty(t)
                continue
            end
            products = {t.gx .* t.gx, t.gx .* t.gy, t.gy .* t.gy, t.gx .* t.difference, t.gy .* t.difference};
            for k = 1:5
                part = h(:, :, k);
                part(t.good) = part(t.good) + t.weight * products{k};
                h(:, :, k) = part;
            end
        end
        for k = 1:5
            h(:, :, k) = opticstream.blurred(h(:, :, k), sigma);
        end
        % Without data there is no deformation: a share of the typical information pulls towards no displacement.
        ordered = sort(reshape(h(:, :, 1) + h(:, :, 3), [], 1));
        at = 1 + 0.75 * (numel(ordered) - 1);
        typical = ordered(floor(at)) + (at - floor(at)) * (ordered(ceil(at)) - ordered(floor(at)));
        ridge = 0.05 * typical + 1e-12;
        a = h(:, :, 1) + ridge;
        b = h(:, :, 2);
        c = h(:, :, 3) + ridge;
        determinant = a .* c - b .* b;
        step = cat(3, (c .* h(:, :, 4) - b .* h(:, :, 5)) ./ determinant, (a .* h(:, :, 5) - b .* h(:, :, 4)) ./ determinant);
        d = mapping.displacement + single(min(max(step, -1), 1));
        reach = floor(2 * sigma + 0.5);  % four times half of sigma; beyond the edges the outer values go on
        for k = 1:2
            wide = d([ones(1, reach) 1:end end * ones(1, reach)], [ones(1, reach) 1:end end * ones(1, reach)], k);
            wide = opticstream.blurred(wide, 0.5 * sigma);
            d(:, :, k) = wide(reach + 1:end - reach, reach + 1:end - reach);
        end
        mapping.displacement = d;
        if max(abs(step(:))) < 0.02
            break
        end
    end
    displacement = mapping.displacement;
end
