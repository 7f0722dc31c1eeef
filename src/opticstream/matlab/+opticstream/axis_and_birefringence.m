function [orientation, birefringence] = axis_and_birefringence(J, w, settings)
% AXIS_AND_BIREFRINGENCE  Return orientation (degrees) and birefringence of the best circle of states over a window.
%
%   With depth the polarization state turns about the optic axis at a constant rate: S3 = cos(w z), S1 + i S2 =
%   sin(w z) exp(i psi). The best rate and azimuth are sought on a table of rates, then by parabolas; the start of the
%   circle is fitted, too, and held near the surface.
    depth = size(w.index, 1) - 1;
    rates = rates_of(depth, settings);
    angle_of = double(rates)' * ((0:depth) + settings.offset);
    cosine = single(cos(angle_of));
    sine = single(sin(angle_of));
    first = J{1}(w.index);
    second = J{2}(w.index);
    across = 2 * first .* conj(second);
    s3 = abs(second).^2 - abs(first).^2;
    across(~w.valid) = 0;
    s3(~w.valid) = 0;
    sums = {cosine * s3, sine * s3, cosine * across, sine * across};
    match = sums{1} + abs(sums{4});
    [top, best] = max(match, [], 1);
    length_of = sum(sqrt(real(across).^2 + imag(across).^2 + s3.^2), 1);
    agreement = top ./ max(length_of, 1e-30);
    price = double(1e-4 * length_of ./ max(agreement, 0.01).^2);
    step = double(rates(2));
    middle = min(max(best - 1, 1), numel(rates) - 2);
    N = numel(middle);
    near = cell(1, 3);
    for d = -1:1
        at = middle + 1 + d + (0:N - 1) * numel(rates);
        near{d + 2} = {sums{1}(at), sums{2}(at), sums{3}(at), sums{4}(at)};
    end
    before = circles(near, middle, step, -1);
    here = circles(near, middle, step, 0);
    after = circles(near, middle, step, 1);
    gain = (after - before) / 2;
    bend = before - 2 * here + after;
    start = min(max(gain ./ max(price - bend, 1e-30), -3), 3);
    [~, shift, psi] = circles(near, middle, step, start);
    rate = max(step * (middle + shift), 0);
    if settings.flip_phase
        psi = -psi;
    end
    orientation = opticstream.wrap_axis(psi * (90 / pi) + opticstream.phase_offset(settings));
    birefringence = rate * (settings.wavelength_um / (4 * pi * settings.depth_step_um));
end

function rates = rates_of(depth, settings)
    largest = min(4 * pi * 6e-3 * settings.depth_step_um / settings.wavelength_um, 0.9 * pi);
    n = max(4, ceil(largest * (depth + 1) / 0.5) + 1);
    rates = single(linspace(0, largest, n));
end

function [best, shift, psi] = circles(near, middle, step, start)
    match = cell(1, 3);
    crossing = cell(1, 3);
    for d = 1:3
        turn = step * (middle + d - 2) .* start;
        n = near{d};
        crossing{d} = cos(turn) .* double(n{4}) + sin(turn) .* double(n{3});
        match{d} = cos(turn) .* double(n{1}) - sin(turn) .* double(n{2}) + abs(crossing{d});
    end
    slope = 0.5 * (match{3} - match{1});
    bend = match{1} - 2 * match{2} + match{3};
    shift = zeros(size(bend));
    down = bend < 0;
    shift(down) = min(max(-slope(down) ./ bend(down), -1), 1);
    best = match{2} + shift .* (slope + 0.5 * shift .* bend);
    psi = angle(crossing{2});
end
