function maps = enface_maps(p, surface, settings)
% ENFACE_MAPS  Return the en face maps that settings.maps names, each of shape (x, y), from a window below the surface.
%
%   P holds the profiles J (a cell per channel) and the volumes dBI, R3D, O3D, each (depth, A-lines, B-lines). The window of
%   an A-line is z1 .. z2 with z1 = clip(surface + offset, 0, Z-1) and z2 = min(z1 + depth, Z-1), both included.
    [Z, A, B] = size(p.dBI);
    N = A * B;
    start = min(max(opticstream.round_even(double(surface(:)')) + settings.offset, 0), Z - 1);
    index = start + (0:min(settings.depth, Z - 1))';
    w.valid = index <= Z - 1;
    w.index = min(index, Z - 1) + 1 + (0:N - 1) * Z;
    names = setdiff(opticstream.as_cells(settings.maps), {'surf', 'surfraw'});
    maps = struct();
    for k = 1:numel(names)
        switch names{k}
            case 'aip'
                map = mean_inside(p.dBI(w.index), w.valid);
            case 'mip'
                inside = p.dBI(w.index);
                inside(~w.valid) = -Inf;
                map = max(inside, [], 1);
            case 'ret'
                if strcmp(settings.retardance_method, 'stokes')
                    map = opticstream.retardance_without_noise(p.J, w);
                else
                    map = mean_inside(p.R3D(w.index), w.valid);
                end
            case 'ori'
                switch settings.orientation_method
                    case 'stokes'
                        map = opticstream.axis_and_birefringence(p.J, w, settings);
                    case 'mean'
                        map = axial_mean(p.O3D(w.index), w.valid);
                    case 'histogram'
                        map = axial_mode(p.O3D(w.index), w.valid);
                end
            case 'biref'
                switch settings.birefringence_method
                    case 'stokes'
                        [~, map] = opticstream.axis_and_birefringence(p.J, w, settings);
                    case 'slope'
                        map = opticstream.birefringence_slope(p.R3D(w.index), w.valid, settings);
                    case 'unwrap'
                        growing = opticstream.unwrapped_retardance(p.R3D, p.O3D, w);
                        map = opticstream.birefringence_slope(growing, w.valid, settings);
                end
            case 'mus'
                map = attenuation(p.dBI, w, settings);
            otherwise
                error('opticstream:settings', 'the map "%s" is not one that these functions make', names{k});
        end
        maps.(names{k}) = reshape(single(map), A, B);
    end
end

function map = mean_inside(inside, valid)
    inside = double(inside);
    inside(~valid) = 0;
    map = sum(inside, 1) ./ sum(valid, 1);
end

function map = axial_mean(inside, valid)
    doubled = double(inside) * (pi / 90);
    map = 0.5 * atan2(sum(sin(doubled) .* valid, 1), sum(cos(doubled) .* valid, 1)) * (180 / pi);
    map(map <= -90) = map(map <= -90) + 180;
end

function map = axial_mode(inside, valid)
    bins = min(max(floor(double(inside) + 90), 0), 179);
    columns = repmat(1:size(bins, 2), size(bins, 1), 1);
    counts = accumarray([bins(valid) + 1 columns(valid)], 1, [180 size(bins, 2)]);
    [~, fullest] = max(counts, [], 1);
    map = fullest - 90.5;
end

function map = attenuation(dBI, w, settings)
    [Z, A, B] = size(dBI);
    linear = 10.^(double(reshape(dBI, Z, A * B)) / 10);
    floor_level = mean(linear(end - max(1, floor(Z / 20)) + 1:end, :), 1);
    signal = max(linear - floor_level, 0);
    below = flipud(cumsum(flipud(signal), 1)) - signal;
    ratio = zeros(size(signal));
    some = below > 0;
    ratio(some) = signal(some) ./ below(some);
    mu = single(log1p(ratio) / (2 * settings.depth_step_um / 1000));
    map = mean_inside(mu(w.index), w.valid);
end
