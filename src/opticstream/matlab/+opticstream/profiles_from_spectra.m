function J = profiles_from_spectra(counts, channel, settings)
% PROFILES_FROM_SPECTRA  Return the complex depth profiles of one B-line, shape (depth, A-lines), complex single.
%
%   COUNTS has shape (samples, A-lines). In this order: background, reversal of channel 2, k-linearization (linear
%   interpolation and extrapolation), residual background, dispersion and window, Fourier transform, the bins from
%   settings.cut up to the middle, complex conjugate.
    v = settings.vectors;
    x = single(counts);
    switch settings.background
        case 'mean'
            x = x - single(mean(double(x), 2));
        case 'file'
            x = x - single(column(v.background, channel));
    end
    if channel == 2 && settings.flip_channel2
        x = x(end:-1:1, :);
    end
    if isfield(v, 'positions')
        position = column(v.positions, channel);
        index = min(max(floor(position), 0), settings.samples - 2);
        fraction = single(position - index);
        left = x(index + 1, :);
        x = left + fraction .* (x(index + 2, :) - left);
    end
    if settings.residual_background
        x = x - median(x, 2);
    end
    if isfield(v, 'dispersion_rad')
        x = x .* single(exp(-1i * column(v.dispersion_rad, channel)));
    end
    if isfield(v, 'window')
        x = x .* single(v.window(:));
    end
    F = fft(x, settings.samples * settings.zero_padding, 1);
    J = conj(F(settings.cut + 1:floor(settings.samples * settings.zero_padding / 2), :));
end

function vector = column(rows, channel)
    vector = rows(min(channel, size(rows, 1)), :).';
end
