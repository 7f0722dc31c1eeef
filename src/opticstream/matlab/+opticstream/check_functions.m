function check_functions(call_file)
% CHECK_FUNCTIONS  Tell which functions of a call are found, and how many arguments they take and return.
%
%   opticstream.check_functions(CALL_FILE) reads the names and the paths from a JSON file and writes its answer to the
%   file that call.answer names.
    call = opticstream.read_json(call_file);
    paths = opticstream.as_cells(call.paths);
    for k = 1:numel(paths)
        addpath(paths{k});
    end
    names = opticstream.as_cells(call.functions);
    found = cell(1, numel(names));
    for k = 1:numel(names)
        try
            found{k} = struct('name', names{k}, 'found', true, 'inputs', nargin(names{k}), 'outputs', nargout(names{k}), ...
                              'problem', '');
        catch problem
            found{k} = struct('name', names{k}, 'found', false, 'inputs', 0, 'outputs', 0, 'problem', problem.message);
        end
    end
    program = 'MATLAB';
    if exist('OCTAVE_VERSION', 'builtin')
        program = 'Octave';
    end
    opticstream.write_json(call.answer, struct('program', [program ' ' version()], 'functions', {found}));
end
