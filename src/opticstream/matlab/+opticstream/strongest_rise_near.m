function index = strongest_rise_near(response, surface)
% STRONGEST_RISE_NEAR  Return the depth of the strongest rise within 12 samples of a surface, A-line by A-line.
%
%   RESPONSE has shape (depth, A-lines), as from edge_response; SURFACE (1, A-lines).
    [Z, N] = size(response);
    % Double: single precision counts no further than to 16777216, fewer voxels than a tile has.
    near = min(max(opticstream.round_even(double(surface)) + (-12:12)', 0), Z - 1);
    [~, best] = max(response(near + 1 + (0:N - 1) * Z), [], 1);
    index = single(near(best + (0:N - 1) * 25));
end
