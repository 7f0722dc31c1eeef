function cells = as_cells(value)
% AS_CELLS  Return a list from JSON, which may be a cell array, an array of structures or empty, as a cell array.
    if iscell(value)
        cells = value;
    elseif ischar(value)
        cells = {value};
    elseif isempty(value)
        cells = {};
    else
        cells = num2cell(value);
    end
end
