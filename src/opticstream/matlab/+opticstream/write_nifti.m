function write_nifti(path, data, voxel_size_mm)
% WRITE_NIFTI  Write an array of up to three axes as float32 NIfTI-1; the file has its name only when it is complete.
    shape = size(data);
    shape(end + 1:3) = 1;
    if any(shape > 32767)
        error('opticstream:file', '%s: has an axis of %d samples; NIfTI-1 holds 32767', path, max(shape));
    end
    head = zeros(1, 352, 'uint8');
    head = put(head, 0, int32(348));
    head = put(head, 40, int16([3 shape 1 1 1 1]));
    head = put(head, 70, int16([16 32]));
    head = put(head, 76, single([1 voxel_size_mm(:)' 1 1 1 1]));
    head = put(head, 108, single(352));
    head = put(head, 112, single([1 0]));
    head(124) = uint8(2);
    head = put(head, 252, int16([1 1]));
    for row = 0:2
        head = put(head, 280 + 20 * row, single(voxel_size_mm(row + 1)));
    end
    head(345:348) = [uint8('n+1') 0];
    unfinished = [path '.partial'];
    [file, message] = fopen(unfinished, 'w', 'ieee-le');
    if file < 0
        error('opticstream:file', '%s: cannot be written: %s', path, message);
    end
    written = fwrite(file, head, 'uint8') + fwrite(file, single(data), 'single');
    closed = fclose(file);
    if written ~= 352 + numel(data) || closed ~= 0
        error('opticstream:file', '%s: could not be written to its end; is the disk full?', path);
    end
    opticstream.rename_file(unfinished, path);
end

function head = put(head, at, values)
    bytes = typecast(values, 'uint8');
    head(at + 1:at + numel(bytes)) = bytes;
end
