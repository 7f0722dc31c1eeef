function value = read_json(path)
% READ_JSON  Return what a JSON file (UTF-8) holds.
    file = fopen(path, 'r', 'n', 'UTF-8');
    if file < 0
        error('opticstream:file', '%s: cannot be opened', path);
    end
    text = fread(file, [1 Inf], '*char');
    fclose(file);
    value = jsondecode(text);
end
