function [data, header] = read_nifti(path)
% READ_NIFTI  Return the values of an uncompressed NIfTI file as they are stored, in the shape of its header.
%
%   Byte order, type and place of the data come from the header (NIfTI-1 or NIfTI-2).
    [file, message] = fopen(path, 'r', 'ieee-le');
    if file < 0
        error('opticstream:file', '%s: cannot be opened: %s', path, message);
    end
    closing = onCleanup(@() fclose(file));
    head = fread(file, [1 544], '*uint8');
    if numel(head) < 348
        error('opticstream:file', '%s: is too short for a NIfTI header', path);
    end
    order = 'ieee-le';
    size_of_header = typecast(head(1:4), 'int32');
    swapped = ~any(size_of_header == [348 540]);
    if swapped
        order = 'ieee-be';
        size_of_header = swapbytes(size_of_header);
    end
    if size_of_header == 348
        dim = double(take(head, 40, 8, 'int16', swapped));
        code = double(take(head, 70, 1, 'int16', swapped));
        offset = double(take(head, 108, 1, 'single', swapped));
    elseif size_of_header == 540 && numel(head) >= 544
        dim = double(take(head, 16, 8, 'int64', swapped));
        code = double(take(head, 12, 1, 'int16', swapped));
        offset = double(take(head, 168, 1, 'int64', swapped));
    else
        error('opticstream:file', '%s: is not a NIfTI file', path);
    end
    codes = [2 4 8 16 64 256 512 768];
    types = {'uint8', 'int16', 'int32', 'single', 'double', 'int8', 'uint16', 'uint32'};
    known = find(codes == code);
    if isempty(known)
        error('opticstream:file', '%s: holds values of NIfTI type %d, which are not real numbers', path, code);
    end
    type = types{known};
    header = struct('shape', dim(2:1 + max(1, min(7, dim(1)))), 'type', type);
    fseek(file, offset, 'bof');
    data = fread(file, Inf, ['*' type], 0, order);
    if prod(header.shape) == numel(data) && all(header.shape > 0)
        data = reshape(data, [header.shape 1]);
    end
end

function values = take(head, at, count, type, swapped)
    bytes = struct('int16', 2, 'single', 4, 'int64', 8);
    values = typecast(head(at + 1:at + count * bytes.(type)), type);
    if swapped
        values = swapbytes(values);
    end
end
