function mapping = refined_mapping(image, valid, starts, freedom)
% REFINED_MAPPING  Return the mapping of highest mutual information of two images, coarse to fine.
%
%   Mattes' mutual information of 32 bins, cubic B-splines over the values of the moving image, all pixels; gradient steps
%   whose length is halved where the direction turns round. Every start is refined on the coarsest copies, the best one to
%   the end. Copies of more than 250000 pixels are left to the least squares that follow.
    if isempty(starts)
        starts = struct('matrix', eye(2), 'offset', [0; 0]);
    end
    for k = 1:numel(starts)
        starts(k) = freed(starts(k), freedom, (size(image{1})' - 1) / 2);
    end
    largest = max([size(image{1}) size(image{2})]);
    coarse = [16 8 4];
    coarse = coarse(largest ./ coarse >= 40);
    if isempty(coarse)
        coarse = 1 + (largest >= 80);
    end
    [copies, known] = copies_of(image, valid, coarse(end));
    best = -Inf;
    mapping = starts(1);
    for k = 1:numel(starts)
        [found, information] = climbed(copies, known, starts(k), freedom, coarse(end), 60);
        if information > best
            best = information;
            mapping = found;
        end
    end
    fine = [4 2 1];
    fine = fine(fine == 1 | largest ./ fine >= 60);
    for factor = fine
        if factor < coarse(end) && numel(image{1}) / factor^2 > 250000
            break
        end
        [copies, known] = copies_of(image, valid, factor);
        mapping = climbed(copies, known, mapping, freedom, factor, 80);
    end
end

function mapping = freed(mapping, freedom, centre)
% The mapping of this freedom that takes the centre to the same place.
    matrix = mapping.matrix;
    switch freedom
        case 'rigid'
            turn = atan2(matrix(2, 1) - matrix(1, 2), matrix(1, 1) + matrix(2, 2));
            matrix = [cos(turn) -sin(turn); sin(turn) cos(turn)];
        case 'translation'
            matrix = eye(2);
    end
    mapping = struct('matrix', matrix, 'offset', mapping.matrix * centre + mapping.offset - matrix * centre);
end

function [copies, known] = copies_of(image, valid, factor)
    copies = cell(1, 2);
    known = cell(1, 2);
    for k = 1:2
        [copies{k}, known{k}] = opticstream.block_means(image{k}, valid{k}, factor);
    end
    copies{2}(~known{2}) = NaN;
end

function [mapping, best] = climbed(image, valid, mapping, freedom, factor, steps)
% Gradient steps on copies that are FACTOR times smaller than the pixels of MAPPING.
    half = (factor - 1) / 2;
    there = struct('matrix', mapping.matrix, 'offset', (mapping.offset + mapping.matrix * [half; half] - half) / factor);
    free = opticstream.free_directions(freedom);
    step = 1;
    before = zeros(size(free, 2), 1);
    best = -Inf;
    result = there;
    for turn = 1:steps
        [information, slope] = information_of(image, valid, there);
        if information > best
            best = information;
            result = there;
        end
        direction = free' * slope;
        if ~all(isfinite(direction)) || norm(direction) < 1e-12
            break
        end
        direction = direction / norm(direction);
        if direction' * before < 0
            step = step / 2;
        end
        if step < 2e-3
            break
        end
        before = direction;
        there = opticstream.moved_mapping(there, free * direction * step, size(image{1}), freedom);
    end
    mapping = struct('matrix', result.matrix, 'offset', result.offset * factor - result.matrix * [half; half] + half);
end

function [information, slope] = information_of(image, valid, mapping)
% Mutual information, and how it changes with (shift x, x by x, x by y, shift y, y by x, y by y).
    bins = 32;
    shape = size(image{1});
    moved = double(opticstream.resampled(image{2}, mapping, shape));
    [gx, gy] = opticstream.slopes_of(moved);
    good = valid{1} & isfinite(moved) & isfinite(gx) & isfinite(gy);
    n = sum(good(:));
    slope = nan(6, 1);
    information = -Inf;
    if n < 64
        return
    end
    row = min(floor(double(image{1}(good)) * (bins - 4)), bins - 5) + 3;
    place = min(max(moved(good), 0), 1) * (bins - 5) + 2;
    first = floor(place);
    joint = zeros(bins, bins);
    away = zeros(n, 4);
    column = zeros(n, 4);
    for k = 1:4
        column(:, k) = min(first + k - 2, bins - 1) + 1;
        away(:, k) = first + k - 2 - place;
        joint = joint + accumarray([row column(:, k)], spline(away(:, k)), [bins bins]);
    end
    joint = joint / sum(joint(:));
    apart = sum(joint, 2) * sum(joint, 1);
    some = joint > 0;
    information = sum(joint(some) .* log(joint(some) ./ apart(some)));
    gain = zeros(bins, bins);
    ratio = joint ./ max(repmat(sum(joint, 1), bins, 1), realmin);
    gain(some) = log(ratio(some));
    pull = zeros(n, 1);
    for k = 1:4
        pull = pull - spline_slope(away(:, k)) .* gain(row + (column(:, k) - 1) * bins);
    end
    pull = pull * (bins - 5) / n;
    [x, y] = opticstream.centred_pixels(shape);
    x = x(good);
    y = y(good);
    along_x = pull .* gx(good);
    along_y = pull .* gy(good);
    slope = [sum(along_x); sum(along_x .* x); sum(along_x .* y); sum(along_y); sum(along_y .* x); sum(along_y .* y)];
end

function weight = spline(t)
% The cubic B-spline.
    a = abs(t);
    weight = (4 - 6 * a.^2 + 3 * a.^3) / 6;
    far = a >= 1;
    weight(far) = max(2 - a(far), 0).^3 / 6;
end

function slope = spline_slope(t)
    a = abs(t);
    slope = -2 * a + 1.5 * a.^2;
    far = a >= 1;
    slope(far) = -0.5 * max(2 - a(far), 0).^2;
    slope = slope .* sign(t);
end
