function normal = locally_normalised(image, valid)
% LOCALLY_NORMALISED  Return an image less its local mean, over its local standard deviation; NaN where not valid.
%
%   Smoothed by sigma 1.5 px, in a neighbourhood of sigma 10 px. Regions without structure stay near 0.
    sigma = 1.5;
    neighbourhood = 10;
    weight = single(valid);
    image(~valid) = 0;
    smooth = opticstream.blurred(image, sigma) ./ max(opticstream.blurred(weight, sigma), 1e-6);
    around = max(opticstream.blurred(weight, neighbourhood), 1e-6);
    smooth(~valid) = 0;
    difference = smooth - opticstream.blurred(smooth, neighbourhood) ./ around;
    difference(~valid) = 0;
    spread = sqrt(opticstream.blurred(difference.^2, neighbourhood) ./ around);
    least = 0;
    if any(valid(:))
        least = 0.1 * median(spread(valid));
    end
    normal = difference ./ max(spread + least, 1e-12);
    normal(~valid) = NaN;
end
