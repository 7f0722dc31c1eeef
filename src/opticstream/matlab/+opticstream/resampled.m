function moved = resampled(image, mapping, shape)
% RESAMPLED  Return a moving image on the pixels of the fixed one, of size SHAPE.
%
%   NaN marks missing values, of the image and of the result: it has none where less than half of the weight of the linear
%   interpolation falls on pixels with a value. MAPPING has matrix and offset, and may have displacement (x, y, 2).
    x = repmat((0:shape(1) - 1)', 1, shape(2));
    y = repmat(0:shape(2) - 1, shape(1), 1);
    if isfield(mapping, 'displacement')
        x = x + double(mapping.displacement(:, :, 1));
        y = y + double(mapping.displacement(:, :, 2));
    end
    m = mapping.matrix;
    at_x = m(1, 1) * x + m(1, 2) * y + mapping.offset(1);
    at_y = m(2, 1) * x + m(2, 2) * y + mapping.offset(2);
    valid = isfinite(image);
    image(~valid) = 0;
    padded = zeros(size(image) + 2);  % a border of zeros, into which values fade
    padded(2:end - 1, 2:end - 1) = image;
    share = zeros(size(padded));
    share(2:end - 1, 2:end - 1) = valid;
    at_x = min(max(at_x + 1, 0), size(padded, 1) - 1);
    at_y = min(max(at_y + 1, 0), size(padded, 2) - 1);
    left = min(floor(at_x), size(padded, 1) - 2);
    lower = min(floor(at_y), size(padded, 2) - 2);
    part_x = at_x - left;
    part_y = at_y - lower;
    rows = size(padded, 1);
    first = left + 1 + lower * rows;
    weight = {(1 - part_x) .* (1 - part_y), part_x .* (1 - part_y), (1 - part_x) .* part_y, part_x .* part_y};
    step = [0 1 rows rows + 1];
    value = zeros(shape);
    known = zeros(shape);
    for k = 1:4
        value = value + weight{k} .* padded(first + step(k));
        known = known + weight{k} .* share(first + step(k));
    end
    moved = nan(shape, 'single');
    good = known >= 0.5;
    moved(good) = value(good) ./ known(good);
end
