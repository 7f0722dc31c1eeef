function J = read_complex_tile(source, settings)
% READ_COMPLEX_TILE  Return the complex profiles of a complex tile: a cell per channel, each (depth, A-lines, B-lines).
    data = opticstream.read_nifti(source);
    A = settings.a_lines;
    B = settings.b_lines;
    width = 2 * settings.channels * A;
    if mod(numel(data), width * B) ~= 0
        error('opticstream:size', '%s: holds %d values, expected planes of %d x %d', source, numel(data), width, B);
    end
    data = reshape(single(data), [width B numel(data) / (width * B)]);
    J = cell(1, settings.channels);
    for c = 1:settings.channels
        first = 2 * (c - 1) * A;
        both = complex(data(first + 1:first + A, :, end:-1:1), data(first + A + 1:first + 2 * A, :, end:-1:1));
        J{c} = permute(both, [3 1 2]);
    end
end
