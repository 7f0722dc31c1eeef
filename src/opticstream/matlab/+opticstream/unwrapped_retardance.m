function growing = unwrapped_retardance(R3D, O3D, w)
% UNWRAPPED_RETARDANCE  Return retardance that keeps growing past the fold at 90 degrees, in a window below the surface.
%
%   The Stokes components of retardance and orientation are smoothed in 3-D (sigma 1, 1 and 3 px); the retardance is the
%   first value and the sum of the absolute changes.
    ring = sin(R3D * single(pi / 90));
    state = {ring .* cos(O3D * single(pi / 90)), ring .* sin(O3D * single(pi / 90)), cos(R3D * single(pi / 90))};
    for k = 1:3
        state{k} = smoothed(smoothed(smoothed(state{k}, 2, 1), 3, 1), 1, 3);
    end
    folded = 0.5 * atan2(hypot(state{1}, state{2}), state{3}) * single(180 / pi);
    inside = folded(w.index);
    growing = cumsum([inside(1, :); abs(diff(inside, 1, 1))], 1);
    growing = max(growing, realmin('single'));
end

function smooth = smoothed(volume, dimension, sigma)
    n = size(volume, dimension);
    smooth = volume;
    if n == 1
        return
    end
    radius = ceil(3 * sigma);
    kernel = exp(-0.5 * ((-radius:radius) / sigma).^2);
    kernel = single(kernel / sum(kernel));
    smooth = zeros(size(volume), 'single');
    part = {':', ':', ':'};
    for k = -radius:radius
        part{dimension} = min(max((1:n) + k, 1), n);
        smooth = smooth + kernel(k + radius + 1) * volume(part{:});
    end
end
