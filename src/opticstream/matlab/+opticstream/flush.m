function flush()
% FLUSH  Send what was printed on its way, where the program holds it back.
    if exist('OCTAVE_VERSION', 'builtin')
        fflush(stdout);
    end
end
