function dBI = intensity_db(J)
% INTENSITY_DB  Return 10 log10(|J1|^2 + |J2|^2) in dB, not less than that of the smallest float32 step (-69.2 dB).
    power = zeros(size(J{1}), 'single');
    for c = 1:numel(J)
        power = power + real(J{c}).^2 + imag(J{c}).^2;
    end
    dBI = 10 * log10(max(power, eps('single')));
end
