function map = retardance_without_noise(J, w)
% RETARDANCE_WITHOUT_NOISE  Return the mean retardance over a window in degrees, free of the bias by noise.
%
%   States are averaged over blocks of 9 samples; what the noise, known from the deepest twentieth of each A-line, adds to the
%   length of their sum is taken off. Blocks whose signal is below half of the noise are not used, unless all are.
    Z = size(J{1}, 1);
    N = numel(J{1}) / Z;
    deep = max(1, floor(Z / 20));
    inside = cell(1, 2);
    noise = cell(1, 2);
    for c = 1:2
        noise{c} = mean(double(abs(reshape(J{c}(end - deep + 1:end, :), deep, N))).^2, 1);
        inside{c} = J{c}(w.index);
    end
    across = double(2 * inside{1} .* conj(inside{2}));
    s3 = double(abs(inside{2}).^2 - abs(inside{1}).^2);
    p1 = double(abs(inside{1}).^2);
    p2 = double(abs(inside{2}).^2);
    extra = max(4 * (p1 .* noise{2} + p2 .* noise{1} - noise{1} .* noise{2}), 0);
    total = p1 + p2;
    across(~w.valid) = 0;
    s3(~w.valid) = 0;
    extra(~w.valid) = 0;
    total(~w.valid) = 0;
    n = blocks(double(w.valid));
    s3 = blocks(s3) - n .* (noise{2} - noise{1});
    length_of = sqrt(max(abs(blocks(across)).^2 - blocks(extra), 0));
    retardance = atan2(length_of, s3) * (90 / pi);
    seen = blocks(total) > n .* (1.5 * (noise{1} + noise{2}));
    weight = n;
    weight(~(seen | ~any(seen, 1))) = 0;
    map = sum(retardance .* weight, 1) ./ sum(weight, 1);
end

function sums = blocks(values)
    starts = 1:9:size(values, 1);
    sums = zeros(numel(starts), size(values, 2));
    for k = 1:numel(starts)
        sums(k, :) = sum(values(starts(k):min(starts(k) + 8, size(values, 1)), :), 1);
    end
end
