function free = free_directions(freedom)
% FREE_DIRECTIONS  Return the directions in (shift x, x by x, x by y, shift y, y by x, y by y) that may change, as columns.
    switch freedom
        case 'affine'
            free = eye(6);
        case 'rigid'
            free = [1 0 0; 0 0 0; 0 0 -1; 0 1 0; 0 0 1; 0 0 0];
        case 'translation'
            free = [1 0; 0 0; 0 0; 0 1; 0 0; 0 0];
        otherwise
            error('opticstream:settings', 'unknown transform "%s"; expected translation, rigid or affine', freedom);
    end
end
