function [x, y] = centred_pixels(shape)
% CENTRED_PIXELS  Return coordinates of pixels from the centre of an image, in halves of its longer side.
    reach = max(shape) / 2;
    x = repmat(((0:shape(1) - 1)' - (shape(1) - 1) / 2) / reach, 1, shape(2));
    y = repmat(((0:shape(2) - 1) - (shape(2) - 1) / 2) / reach, shape(1), 1);
end
