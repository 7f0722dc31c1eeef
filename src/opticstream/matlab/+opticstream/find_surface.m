function [surface, unfiltered, confidence] = find_surface(intensity_db, settings)
% FIND_SURFACE  Return the depth index (from 0) of the tissue surface of each A-line, shape (x, y).
%
%   INTENSITY_DB has shape (x, y, z). UNFILTERED is the surface before any median or smoothing, which focus finding needs;
%   CONFIDENCE is 0..1. settings.surface is a depth index, 'gradient', 'gradient_threshold' or 'robust'; a surface of
%   its own for each A-line comes in settings.vectors.given_surface.
    [A, B, Z] = size(intensity_db);
    confidence = ones(A, B, 'single');
    if isfield(settings.vectors, 'given_surface')
        surface = single(settings.vectors.given_surface);
        unfiltered = surface;
        return
    end
    if isnumeric(settings.surface)
        surface = repmat(single(min(settings.surface, Z - 1)), A, B);
        unfiltered = surface;
        return
    end
    lines = reshape(permute(intensity_db, [3 1 2]), Z, A * B);
    switch settings.surface
        case 'robust'
            [surface, confidence] = opticstream.surface_sheet(intensity_db);
            unfiltered = reshape(opticstream.strongest_rise_near(opticstream.edge_response(lines), surface(:)'), A, B);
            return
        case 'gradient_threshold'
            unfiltered = strongest_rise(lines);
            level = settings.surface_threshold_db;
            at_once = mean(double(lines(1:min(20, Z), :)), 1) >= level;
            [~, first] = max(lines(:, at_once) >= level, [], 1);
            unfiltered(at_once) = single(first - 1);
        case {'gradient', 'find'}
            unfiltered = strongest_rise(lines);
        otherwise
            error('opticstream:settings', 'unknown surface method "%s"', settings.surface);
    end
    unfiltered = reshape(unfiltered, A, B);
    surface = opticstream.median_3x3(unfiltered);
end

function index = strongest_rise(lines)
    if size(lines, 1) < 10
        index = zeros(1, size(lines, 2), 'single');
        return
    end
    [~, best] = max(opticstream.edge_response(lines), [], 1);
    index = single(best - 1);
    index(sum(lines > 0, 1) < 10) = 0;
end
