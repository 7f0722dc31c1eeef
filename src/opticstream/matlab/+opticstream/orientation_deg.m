function O3D = orientation_deg(J, settings)
% ORIENTATION_DEG  Return the orientation of the optic axis in degrees, (-90, 90]: half the phase difference, shifted.
    turn = single(90 / pi);
    if settings.flip_phase
        turn = -turn;
    end
    O3D = opticstream.wrap_axis(angle(J{1} .* conj(J{2})) * turn + single(opticstream.phase_offset(settings)));
end
