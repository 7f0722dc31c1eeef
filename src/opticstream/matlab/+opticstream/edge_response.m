function response = edge_response(lines)
% EDGE_RESPONSE  Return how much brighter each A-line is just below a depth than just above it, in dB.
%
%   LINES has shape (depth, A-lines). Each is smoothed (Gaussian, sigma 5 px, edges replicated); the response at z is the
%   mean of samples z .. z+4 minus that of z-5 .. z-1, and -Inf where one of them lies outside.
    Z = size(lines, 1);
    response = -Inf(size(lines), 'single');
    if Z < 10
        return
    end
    kernel = exp(-0.5 * ((-20:20)' / 5).^2);
    taps = conv(kernel / sum(kernel), [-ones(5, 1); ones(5, 1)] / 5);
    padded = [repmat(lines(1, :), 20, 1); lines; repmat(lines(end, :), 20, 1)];
    response(6:Z - 4, :) = conv2(single(padded), single(taps(end:-1:1)), 'valid');
end
