function [matrix, offset, displacement] = mapping_from_images(given, settings)
% MAPPING_FROM_IMAGES  Return the mapping from fixed to moving pixels that makes the images agree.
%
%   Every shift at several rotations is tried on small copies (masked normalised correlation), Mattes mutual information of
%   the smoothed birefringence refines the best few, coarse to fine, and least squares on all maps, locally normalised and
%   weighted by their agreement, sharpens the result. See register_illuminations for the fields of GIVEN;
%   settings.transform is 'translation', 'rigid' or 'affine'; larger images than settings.max_pixels are halved.
%   DISPLACEMENT is [] without settings.bend_sigma_px.
    valid = {logical(given.fixed_valid), logical(given.moving_valid)};
    maps = {single(given.fixed), single(given.moving)};
    image = cell(1, 2);
    for k = 1:2
        valid{k} = valid{k} & isfinite(maps{k}(:, :, 1));
        image{k} = compared_image(maps{k}(:, :, 1), valid{k}, settings.smoothing_sigma_px);
    end
    shrink = 1;
    while max(numel(image{1}), numel(image{2})) / shrink^2 > settings.max_pixels
        shrink = 2 * shrink;
    end
    small = cell(1, 2);
    inside = cell(1, 2);
    for k = 1:2
        [small{k}, inside{k}] = opticstream.block_means(image{k}, valid{k}, shrink);
    end
    starts = opticstream.rough_mappings(small, inside, given.scale_guess(:), settings.max_rotation_deg);
    mapping = opticstream.refined_mapping(small, inside, starts, settings.transform);
    pairs = cell(0, 2);
    for n = 1:size(maps{1}, 3)
        pair = cell(1, 2);
        for k = 1:2
            good = valid{k} & isfinite(maps{k}(:, :, n));
            if any(good(:))
                [means, known] = opticstream.block_means(maps{k}(:, :, n), good, shrink);
                pair{k} = opticstream.locally_normalised(means, known);
            end
        end
        if ~any(cellfun(@isempty, pair))
            pairs(end + 1, :) = pair;
        end
    end
    mapping = opticstream.sharpened_mapping(pairs, mapping, settings.transform);
    displacement = [];
    if settings.bend_sigma_px > 0
        bend = opticstream.bent_mapping(pairs, mapping, max(settings.bend_sigma_px / shrink, 4));
        displacement = enlarged(bend, shrink, size(image{1}));
    end
    shift = (shrink - 1) / 2;
    matrix = mapping.matrix;
    offset = mapping.offset * shrink - matrix * [shift; shift] + shift;
end

function image = compared_image(values, valid, sigma)
% The smoothed image, scaled to 0..1 between its 1st and 99th percentile.
    if ~any(valid(:))
        error('opticstream:registration', 'an image has no value inside its mask');
    end
    filled = values;
    filled(~valid) = 0;
    if sigma > 0
        weight = opticstream.blurred(single(valid), sigma);
        filled = opticstream.blurred(filled, sigma) ./ max(weight, 1e-6);
    end
    ordered = sort(double(filled(valid)));
    at = 1 + [0.01 0.99] * (numel(ordered) - 1);
    limits = ordered(floor(at))' + (at - floor(at)) .* (ordered(ceil(at)) - ordered(floor(at)))';
    if ~(limits(2) > limits(1))
        error('opticstream:registration', 'an image is constant (%g); there is nothing to register', limits(1));
    end
    image = single(min(max((filled - limits(1)) / (limits(2) - limits(1)), 0), 1));
    image(~valid) = 0;
end

function large = enlarged(displacement, factor, shape)
    if factor == 1 || isempty(displacement)
        large = displacement;
        return
    end
    shift = (factor - 1) / 2;
    large = zeros([shape 2], 'single');
    for c = 1:2
        here = cell(1, 2);
        for d = 1:2
            n = size(displacement, d);
            here{d} = min(max(((0:shape(d) - 1) - shift) / factor, 0), n - 1) + 1;
        end
        large(:, :, c) = factor * interp2(displacement(:, :, c), here{2}, here{1}');
    end
end
