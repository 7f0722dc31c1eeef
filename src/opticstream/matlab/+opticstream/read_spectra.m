function counts = read_spectra(source, settings)
% READ_SPECTRA  Return the raw counts of a spectral tile, shape (samples, A-lines, channels, B-lines).
%
%   settings.raw_format is 'nifti', or 'packed12' for 12-bit samples without a header, 3 bytes for two of them.
    shape = [settings.samples settings.a_lines settings.channels settings.b_lines];
    if strcmp(settings.raw_format, 'packed12')
        [file, message] = fopen(source, 'r');
        if file < 0
            error('opticstream:file', '%s: cannot be opened: %s', source, message);
        end
        bytes = uint16(fread(file, [3 Inf], '*uint8'));
        fclose(file);
        counts = [bytes(1, :) + 256 * bitand(bytes(2, :), 15); bitshift(bytes(2, :), -4) + 16 * bytes(3, :)];
    else
        counts = opticstream.read_nifti(source);
    end
    if numel(counts) ~= prod(shape)
        error('opticstream:size', '%s: holds %d samples, expected %d', source, numel(counts), prod(shape));
    end
    counts = reshape(counts, shape);
end
