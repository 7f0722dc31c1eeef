function filtered = median_3x3(image)
% MEDIAN_3X3  Return the 3 x 3 median of an image, its edge pixels repeated.
    padded = image([1 1:end end], [1 1:end end]);
    [A, B] = size(image);
    stack = zeros(A, B, 9, class(image));
    for k = 0:8
        stack(:, :, k + 1) = padded((1:A) + mod(k, 3), (1:B) + floor(k / 3));
    end
    stack = sort(stack, 3);
    filtered = stack(:, :, 5);
end
