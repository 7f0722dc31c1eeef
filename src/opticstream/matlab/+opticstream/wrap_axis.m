function angle = wrap_axis(angle)
% WRAP_AXIS  Bring angles of axes, in degrees, to (-90, 90].
    angle = angle - 180 * ceil((angle - 90) / 180);
end
