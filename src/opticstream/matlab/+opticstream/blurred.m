function smooth = blurred(image, sigma)
% BLURRED  Return an image averaged by a Gaussian of 4 sigma reach; beyond its edges there are zeros.
    reach = floor(4 * sigma + 0.5);
    kernel = exp(-0.5 * ((-reach:reach) / sigma).^2);
    kernel = kernel / sum(kernel);
    smooth = single(band(kernel, reach, size(image, 1)) * double(image) * band(kernel, reach, size(image, 2)));
end

function matrix = band(kernel, reach, n)
% The matrix that averages the columns of an image of n rows; it is its own transpose.
    matrix = spdiags(repmat(kernel, n, 1), -reach:reach, n, n);
    if 4 * reach > n
        matrix = full(matrix);
    end
end
