function [gx, gy] = slopes_of(image)
% SLOPES_OF  Return the slopes of an image along x (first axis) and y: central differences, one-sided at the edges.
    gx = image([2:end end], :) - image([1 1:end - 1], :);
    gx(2:end - 1, :) = gx(2:end - 1, :) / 2;
    gy = image(:, [2:end end]) - image(:, [1 1:end - 1]);
    gy(:, 2:end - 1) = gy(:, 2:end - 1) / 2;
end
