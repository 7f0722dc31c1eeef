function mapping = moved_mapping(mapping, step, shape, freedom)
% MOVED_MAPPING  Return a mapping after a step in (shift x, x by x, x by y, shift y, y by x, y by y) about the centre.
    centre = (shape(:) - 1) / 2;
    linear = eye(2) + [step(2) step(3); step(5) step(6)] / (max(shape) / 2);
    if ~strcmp(freedom, 'affine')
        [u, ~, v] = svd(linear);
        linear = u * v';
    end
    mapping.offset = mapping.matrix * (centre - linear * centre + [step(1); step(4)]) + mapping.offset;
    mapping.matrix = mapping.matrix * linear;
end
