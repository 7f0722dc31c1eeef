function [means, known] = block_means(image, valid, factor)
% BLOCK_MEANS  Return means over blocks of valid pixels, and which blocks are known: those that are valid by half.
    image(~valid) = 0;
    if factor == 1
        means = image;
        known = valid;
        return
    end
    shape = floor(size(image) / factor);
    if any(shape < 1)
        error('opticstream:registration', 'an image of %d x %d px is too small to be shrunk %d times', size(image), factor);
    end
    total = sum_of_blocks(double(image), shape, factor);
    weight = sum_of_blocks(double(valid), shape, factor);
    known = 2 * weight >= factor^2;
    means = single(total ./ max(weight, 1));
    means(~known) = 0;
end

function total = sum_of_blocks(image, shape, factor)
    part = image(1:shape(1) * factor, 1:shape(2) * factor);
    part = sum(reshape(part, factor, shape(1), []), 1);
    total = reshape(sum(reshape(part, shape(1), factor, shape(2)), 2), shape(1), shape(2));
end
