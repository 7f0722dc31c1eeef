function found = rough_mappings(image, valid, scale_guess, max_rotation_deg)
% ROUGH_MAPPINGS  Return the best three mappings among all shifts at some rotations, on copies of about 96 pixels.
%
%   The correlation of every overlap is normalised by the values in that overlap alone (Padfield 2012), so that masks and
%   different sizes do not bias it. IMAGE and VALID are cells of the fixed and the moving image.
    factor = max(1, round(max([size(image{1}) size(image{2})]) / 96));
    small = cell(1, 2);
    inside = cell(1, 2);
    for k = 1:2
        [small{k}, inside{k}] = opticstream.block_means(image{k}, valid{k}, factor);
    end
    small{2}(~inside{2}) = NaN;
    steps = max(1, round(max_rotation_deg / 2));
    scales = unique([1 1; scale_guess'], 'rows');
    scores = [];
    mappings = struct('matrix', {}, 'offset', {});
    for n = 1:size(scales, 1)
        for angle = linspace(-max_rotation_deg, max_rotation_deg, 2 * steps + 1)
            matrix = [cosd(angle) -sind(angle); sind(angle) cosd(angle)] * diag(scales(n, :));
            canvas = ceil(abs(inv(matrix)) * size(small{2})')' + 1;
            offset = (size(small{2})' - 1) / 2 - matrix * (canvas' - 1) / 2;
            turned = opticstream.resampled(small{2}, struct('matrix', matrix, 'offset', offset), canvas);
            [score, shift] = correlation_peaks(small{1}, inside{1}, turned);
            for k = 1:numel(score)
                scores(end + 1) = score(k);
                mappings(end + 1) = struct('matrix', matrix, 'offset', offset - matrix * shift(:, k));
            end
        end
    end
    [~, order] = sort(scores, 'descend');
    centre = (size(small{1})' - 1) / 2;
    found = mappings([]);
    for k = order
        place = mappings(k).matrix * centre + mappings(k).offset;
        if all(arrayfun(@(other) norm(place - other.matrix * centre - other.offset) > 4, found))
            found(end + 1) = mappings(k);
        end
        if numel(found) == 3
            break
        end
    end
    for k = 1:numel(found)
        half = (factor - 1) / 2;
        found(k).offset = found(k).offset * factor - found(k).matrix * [half; half] + half;
    end
end

function [scores, shifts] = correlation_peaks(fixed, known, turned)
% The two highest peaks of the correlation, by significance; turned(p - shift) lies on fixed(p).
    scores = [];
    shifts = zeros(2, 0);
    valid = isfinite(turned);
    if ~any(valid(:)) || ~any(known(:))
        return
    end
    shape = size(fixed) + size(turned);
    still = double(fixed) - mean(double(fixed(known)));
    still(~known) = 0;
    moved = double(turned) - mean(double(turned(valid)));
    moved(~valid) = 0;
    f = {fft2(still, shape(1), shape(2)), fft2(still.^2, shape(1), shape(2)), fft2(double(known), shape(1), shape(2))};
    g = {conj(fft2(moved, shape(1), shape(2))), conj(fft2(moved.^2, shape(1), shape(2))), ...
         conj(fft2(double(valid), shape(1), shape(2)))};
    back = @(product) real(ifft2(product));
    n = max(round(back(f{3} .* g{3})), 0);
    count = max(n, 1);
    sum_f = back(f{1} .* g{3});
    sum_g = back(f{3} .* g{1});
    cross = back(f{1} .* g{1}) - sum_f .* sum_g ./ count;
    power = max(back(f{2} .* g{3}) - sum_f.^2 ./ count, 0) .* max(back(f{3} .* g{2}) - sum_g.^2 ./ count, 0);
    smallest = min(sum(known(:)), sum(valid(:)));
    allowed = n > 0.15 * smallest & power > 1e-12 * max(max(power(:)), 1e-300);
    score = -Inf(shape);
    correlation = cross(allowed) ./ sqrt(power(allowed));
    score(allowed) = atanh(min(max(correlation, -0.999), 0.999)) .* sqrt(n(allowed));
    for k = 1:2
        [best, at] = max(score(:));
        if ~isfinite(best)
            break
        end
        [i, j] = ind2sub(shape, at);
        shift = [i; j] - 1;
        beyond = shift >= size(fixed)';
        shift(beyond) = shift(beyond) - shape(beyond)';
        scores(end + 1) = best;
        shifts(:, end + 1) = shift;
        score(mod(i - 1 + (-4:4), shape(1)) + 1, mod(j - 1 + (-4:4), shape(2)) + 1) = -Inf;
    end
end
