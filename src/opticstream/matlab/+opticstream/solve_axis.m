function solve_axis(source, outputs, settings)
% SOLVE_AXIS  Find the fibre axis of each pixel from what two or more beams saw (through-plane registration).
%
%   The .mat file SOURCE holds orientation_deg and birefringence, shape (x, y, beams), on the pixels of the first beam, and
%   frames, shape (3, 3, beams): the columns of each are the beam's x and y in which it sees orientations, and its direction.
%   The .mat file outputs.solution gets solution and alternative, shape (x, y, 3): vectors along the axis whose length is
%   the birefringence, the best fit and that of the next branch; NaN where fewer than two beams have a value.
    given = load(source);
    [solution, alternative] = opticstream.axis_from_projections(given.orientation_deg, given.birefringence, given.frames);
    unfinished = [outputs.solution '.partial'];
    save('-v6', unfinished, 'solution', 'alternative');
    opticstream.rename_file(unfinished, outputs.solution);
end
