function register_illuminations(source, outputs, settings)
% REGISTER_ILLUMINATIONS  Find the mapping that lays one illumination of a slice onto another.
%
%   The .mat file SOURCE holds fixed and moving, shape (x, y, maps), whose first map is the birefringence and whose others
%   show the same pixels, fixed_valid and moving_valid, shape (x, y), which tell where there is tissue, and scale_guess
%   (x, y), the expected size of the moving over the fixed image.
%   The .mat file outputs.mapping gets matrix (2, 2) and offset (2, 1): p_moving = matrix * p_fixed + offset, pixels counted
%   from 0; with settings.bend_sigma_px > 0 also displacement (x, y, 2), which is added to p_fixed first.
    given = load(source);
    [matrix, offset, displacement] = opticstream.mapping_from_images(given, settings);
    unfinished = [outputs.mapping '.partial'];
    if isempty(displacement)
        save('-v6', unfinished, 'matrix', 'offset');
    else
        save('-v6', unfinished, 'matrix', 'offset', 'displacement');
    end
    opticstream.rename_file(unfinished, outputs.mapping);
end
