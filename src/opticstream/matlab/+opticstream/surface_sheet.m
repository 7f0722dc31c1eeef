function [surface, confidence] = surface_sheet(intensity_db)
% SURFACE_SHEET  Return the surface of a tile as the smooth sheet of strongest rise, and its confidence (0..1).
%
%   INTENSITY_DB has shape (x, y, z). A-lines are averaged in cells of 4 x 4; the edge response of the cells is summed
%   along paths from four sides, each step between cells at a price for the change of depth (semi-global matching), and
%   cells far from the trend of their surroundings (a robust quadratic surface over 13 x 13 cells) are put onto it.
    lookahead = 5;
    trend_cells = 6;
    [A, B, ~] = size(intensity_db);
    cells = permute(cell_means(permute(cell_means(intensity_db), [2 1 3])), [3 2 1]);  % (depth, cells in x, cells in y)
    [Z, X, Y] = size(cells);
    full = reshape(max(opticstream.edge_response(reshape(cells, Z, X * Y)), -100), Z, X, Y);
    full(:, sum(reshape(cells > 0, Z, X * Y), 1) < 10) = 0;
    full = reshape(full, Z, X, Y);
    response = full(1:2:end, :, :);
    sums = response;
    for order = {1:X, X:-1:1}
        carried = zeros(size(response, 1), Y, 'single');
        for i = order{1}
            sums(:, i, :) = sums(:, i, :) + reshape(carried, [], 1, Y);
            carried = spread(reshape(response(:, i, :), [], Y) + carried);
        end
    end
    forward = zeros(size(response, 1), X, 'single');
    for y = 1:Y
        if y > 1
            sums(:, :, y) = sums(:, :, y) + forward;
        end
        forward = spread(response(:, :, y) + forward);
    end
    guess = nan(X, Y);
    for y = 1:Y
        below = [];
        for later = min(y + lookahead, Y):-1:y + 1
            if isempty(below)
                below = spread(response(:, :, later));
            else
                below = spread(response(:, :, later) + below);
            end
        end
        if ~isempty(below)
            sums(:, :, y) = sums(:, :, y) + below;
        end
        [~, best] = max(sums(:, :, y), [], 1);
        here = response(:, :, y);
        rise = here(best + (0:X - 1) * size(here, 1));
        sure = rise >= 2;
        guess(sure, y) = 2 * (best(sure) - 1);
    end
    rows = zeros(X, Y, 'single');
    sure = zeros(X, Y, 'single');
    for y = 1:Y
        around = nan(X, 2 * trend_cells + 1);
        known = max(1, y - trend_cells):min(Y, y + trend_cells);
        around(:, known - y + trend_cells + 1) = guess(:, known);
        [trend, count] = trend_of(around, trend_cells);
        depth = peak(sums(:, :, y));
        allowed = 4 * sqrt((2 * trend_cells + 1)^2 ./ max(count, 1));
        stray = abs(depth - trend) > allowed;
        depth(stray) = min(max(trend(stray), 0), Z - 1);
        rows(:, y) = depth;
        sure(:, y) = confidence_of(full(:, :, y), opticstream.round_even(depth));
    end
    surface = single(between(between(double(rows)', B)', A));
    confidence = sure(floor((0:A - 1) / 4) + 1, floor((0:B - 1) / 4) + 1);
end

function means = cell_means(image)
    n = size(image, 1);
    means = zeros([ceil(n / 4) size(image, 2) size(image, 3)], 'single');
    for k = 1:size(means, 1)
        means(k, :, :) = mean(image(4 * k - 3:min(4 * k, n), :, :), 1);
    end
end

function best = spread(total)
% The best of all depths less the price of the way, by steps of 1, 2, 4, ... samples.
    best = total - max(total, [], 1);
    step = 1;
    while step < size(total, 1)
        price = single(0.5 * step);
        moved = best;
        moved(step + 1:end, :) = max(moved(step + 1:end, :), best(1:end - step, :) - price);
        moved(1:end - step, :) = max(moved(1:end - step, :), best(step + 1:end, :) - price);
        best = moved;
        step = 2 * step;
    end
end

function [trend, count] = trend_of(around, reach)
% The robust quadratic trend at each cell of a row, from guesses of shape (cells, rows around), and how many are known.
    offsets = (-reach:reach) / reach;
    [x, y] = ndgrid(offsets, offsets);
    x = x(:)';
    y = y(:)';
    design = [ones(1, numel(x)); x; y; x .* y; x.^2; y.^2];
    products = reshape(reshape(design, 6, 1, []) .* reshape(design, 1, 6, []), 36, []);
    ridge = diag([1e-9 0.1 0.1 0.3 0.3 0.3]);
    X = size(around, 1);
    padded = [nan(reach, 2 * reach + 1); around; nan(reach, 2 * reach + 1)];
    trend = nan(1, X);
    count = zeros(1, X);
    for i = 1:X
        values = reshape(padded(i:i + 2 * reach, :), 1, []);
        known = ~isnan(values);
        count(i) = sum(known);
        if count(i) == 0
            continue
        end
        ordered = sort(values(known));
        middle = ordered(floor((count(i) - 1) / 2) + 1);
        values = values - middle;
        values(~known) = 0;
        fitted = zeros(size(values));
        for scale = [40 16 8 5 5]
            weight = known .* max(1 - ((values - fitted) / scale).^2, 0).^2;
            coefficients = (reshape(products * weight', 6, 6) + ridge) \ (design * (weight .* values)');
            fitted = coefficients' * design;
        end
        trend(i) = coefficients(1) + middle;
    end
end

function depth = peak(total)
% The depth of the highest sum of each cell, between samples by a parabola.
    [D, X] = size(total);
    [~, best] = max(total, [], 1);
    inner = min(max(best, 2), D - 1);
    at = inner + (0:X - 1) * D;
    left = double(total(at - 1));
    right = double(total(at + 1));
    bend = left - 2 * double(total(at)) + right;
    shift = zeros(1, X);
    good = bend < 0 & inner == best;
    shift(good) = 0.5 * (left(good) - right(good)) ./ bend(good);
    depth = single(2 * (best - 1 + min(max(shift, -0.5), 0.5)));
    depth = double(depth);
end

function sure = confidence_of(response, surface)
    [Z, X] = size(response);
    own = max(response(min(max(surface, 0), Z - 1) + 1 + (0:X - 1) * Z), 0);
    far = abs((0:Z - 1)' - surface) > 16;
    rival = max(response, 0);
    rival(~far) = 0;
    rival = max(rival, [], 1);
    sure = own ./ max(own + rival, 1e-6);
end

function values = between(cells, n)
% Interpolate linearly between the centres of cells along the first axis, and beyond the outer ones.
    starts = 0:4:n - 1;
    centres = starts + (min(4, n - starts) - 1) / 2;
    if numel(centres) == 1
        values = repmat(cells, n, 1);
        return
    end
    wanted = 0:n - 1;
    left = zeros(1, n);
    for k = 1:n
        left(k) = min(max(sum(centres <= wanted(k)), 1), numel(centres) - 1);
    end
    part = (wanted - centres(left)) ./ (centres(left + 1) - centres(left));
    values = cells(left, :) + part' .* (cells(left + 1, :) - cells(left, :));
end
