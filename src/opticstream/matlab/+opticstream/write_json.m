function write_json(path, value)
% WRITE_JSON  Write a JSON file (UTF-8) that has its name only when it is complete.
    unfinished = [path '.partial'];
    file = fopen(unfinished, 'w', 'n', 'UTF-8');
    if file < 0
        error('opticstream:file', '%s: cannot be written', path);
    end
    text = jsonencode(value);
    written = fwrite(file, text, 'char');
    closed = fclose(file);
    if written ~= numel(text) || closed ~= 0
        error('opticstream:file', '%s: could not be written to its end; is the disk full?', path);
    end
    opticstream.rename_file(unfinished, path);
end
