function R3D = retardance_deg(J)
% RETARDANCE_DEG  Return atan(|J1| / |J2|) in degrees, 0..90.
    R3D = atan(abs(J{1}) ./ max(abs(J{2}), eps('single'))) * single(180 / pi);
end
