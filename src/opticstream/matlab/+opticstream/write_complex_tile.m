function write_complex_tile(path, J, settings)
% WRITE_COMPLEX_TILE  Write complex profiles as the rigs exchange them: Re J1, Im J1, Re J2, Im J2 along x, depth reversed.
    parts = {};
    for c = 1:numel(J)
        reversed = permute(J{c}(end:-1:1, :, :), [2 3 1]);
        parts = [parts {real(reversed), imag(reversed)}];
    end
    opticstream.write_nifti(path, cat(1, parts{:}), settings.voxel_size_mm);
end
