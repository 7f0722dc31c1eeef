function J = jones_from_spectra(counts, settings)
% JONES_FROM_SPECTRA  Return the complex profiles of a tile: a cell per channel, each (depth, A-lines, B-lines).
    depth = floor(settings.samples * settings.zero_padding / 2) - settings.cut;
    J = cell(1, settings.channels);
    for c = 1:settings.channels
        J{c} = complex(zeros(depth, settings.a_lines, settings.b_lines, 'single'));
        for b = 1:settings.b_lines
            J{c}(:, :, b) = opticstream.profiles_from_spectra(counts(:, :, c, b), c, settings);
        end
    end
end
