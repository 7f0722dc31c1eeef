function t = linearised_pair(fixed, moved)
% LINEARISED_PAIR  Return what least squares need of two images: slopes, difference, weight and agreement; [] for too little.
    t = [];
    [gx, gy] = opticstream.slopes_of(moved);
    good = isfinite(fixed) & isfinite(gx) & isfinite(gy) & isfinite(moved);
    count = sum(good(:));
    if count < 64
        return
    end
    f = double(fixed(good));
    m = double(moved(good));
    f = f - mean(f);
    m = m - mean(m);
    ff = f' * f;
    mm = m' * m;
    fm = f' * m;
    if fm <= 0 || ff <= 0 || mm <= 0
        return
    end
    agreement = min(fm / sqrt(ff * mm), 0.999);
    gain = fm / mm;
    weight = agreement^2 / (1 - agreement^2) / (ff / count);
    t = struct('good', good, 'gx', gain * double(gx(good)), 'gy', gain * double(gy(good)), 'difference', f - gain * m, ...
               'weight', weight, 'agreement', agreement);
end
