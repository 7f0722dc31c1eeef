function rename_file(from, to)
% RENAME_FILE  Give a file another name in one step, without a shell.
    if exist('OCTAVE_VERSION', 'builtin')
        [status, message] = rename(from, to);
        ok = status == 0;
    else
        [ok, message] = movefile(from, to, 'f');
    end
    if ~ok
        error('opticstream:file', '%s: cannot be renamed: %s', to, message);
    end
end
