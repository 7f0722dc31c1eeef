function offset = phase_offset(settings)
% PHASE_OFFSET  Return settings.phase_offset_deg brought to [-90, 90), so that sums in single precision stay exact.
    offset = mod(settings.phase_offset_deg + 90, 180) - 90;
end
