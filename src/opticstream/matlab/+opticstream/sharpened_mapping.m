function mapping = sharpened_mapping(pairs, mapping, freedom)
% SHARPENED_MAPPING  Return the mapping nearby that makes pairs of locally normalised maps agree best.
%
%   Least squares; each pair counts by how well it agrees. Where nothing better is found, the given mapping is returned.
    enough = 5e-3;
    if isempty(pairs)
        return
    end
    shape = size(pairs{1, 1});
    [x, y] = opticstream.centred_pixels(shape);
    free = opticstream.free_directions(freedom);
    best = mapping;
    best_score = -Inf;
    for turn = 1:15
        normal = zeros(6);
        pull = zeros(6, 1);
        score = 0;
        for n = 1:size(pairs, 1)
            t = opticstream.linearised_pair(pairs{n, 1}, opticstream.resampled(pairs{n, 2}, mapping, shape));
            if isempty(t)
                continue
            end
            xs = x(t.good);
            ys = y(t.good);
            slopes = [t.gx, t.gx .* xs, t.gx .* ys, t.gy, t.gy .* xs, t.gy .* ys];
            normal = normal + t.weight * (slopes' * slopes);
            pull = pull + t.weight * (slopes' * t.difference);
            score = score + t.agreement;
        end
        if score <= best_score + 1e-6
            break
        end
        best = mapping;
        best_score = score;
        inner = free' * normal * free;
        step = free * ((inner + 1e-9 * trace(inner) * eye(size(inner))) \ (free' * pull));
        mapping = opticstream.moved_mapping(mapping, step, shape, freedom);
        if max(abs(step)) < enough
            break
        end
    end
    corners = [0 shape(1); 0 shape(2)];
    apart = (best.matrix - mapping.matrix) * corners + (best.offset - mapping.offset);
    if max(abs(apart(:))) >= 4 * enough
        mapping = best;
    end
end
