function map = birefringence_slope(retardance, valid, settings)
% BIREFRINGENCE_SLOPE  Return the least-squares slope of retardance / 360 * wavelength over depth.
%
%   RETARDANCE is in degrees, shape (window, A-lines). An exact zero ends the window; fewer than 3 samples give 0.
    used = valid & cumprod(double(retardance ~= 0), 1) > 0;
    n = sum(used, 1);
    z = (0:size(retardance, 1) - 1)' * settings.depth_step_um;
    path = double(retardance) * (settings.wavelength_um / 360);
    path(~used) = 0;
    sum_z = z' * used;
    sum_zz = (z.^2)' * used;
    sum_p = sum(path, 1);
    sum_zp = z' * path;
    determinant = n .* sum_zz - sum_z.^2;
    good = n >= 3 & determinant > 0;
    map = zeros(1, size(retardance, 2));
    map(good) = (n(good) .* sum_zp(good) - sum_z(good) .* sum_p(good)) ./ determinant(good);
end
