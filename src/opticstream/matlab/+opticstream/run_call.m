function run_call(call_file)
% RUN_CALL  Do one call of OpticStream: a function for each tile of a batch.
%
%   opticstream.run_call(CALL_FILE) reads the arguments from a JSON file (see docs/how-to/matlab.md) and
%   calls, for each tile in turn, each of its steps as FUNCTION(SOURCE, OUTPUTS, SETTINGS). A tile that fails does
%   not stop the others: its error is written to its status file. A status file appears whole, by renaming,
%   after everything that the tile leaves has been written.
    call = opticstream.read_json(call_file);
    paths = opticstream.as_cells(call.paths);
    for k = 1:numel(paths)
        addpath(paths{k});
    end
    settings = call.settings;
    if isfield(call, 'vectors') && ~isempty(call.vectors)
        settings.vectors = load(call.vectors);
    else
        settings.vectors = struct();
    end
    items = opticstream.as_cells(call.items);
    for k = 1:numel(items)
        item = items{k};
        fprintf('opticstream: %s begins\n', item.name);
        opticstream.flush();
        began = tic();
        try
            steps = opticstream.as_cells(item.steps);
            for n = 1:numel(steps)
                feval(steps{n}.name, steps{n}.source, steps{n}.outputs, settings);
            end
            status = struct('ok', true, 'seconds', toc(began));
        catch problem
            status = struct('ok', false, 'identifier', problem.identifier, 'message', problem.message, ...
                            'where', place_of(problem));
        end
        opticstream.write_json(item.status, status);
        if status.ok
            fprintf('opticstream: %s done in %.1f s\n', item.name, status.seconds);
        else
            fprintf('opticstream: %s failed: %s\n', item.name, status.message);
        end
        opticstream.flush();
    end
end

function text = place_of(problem)
    text = '';
    if ~isempty(problem.stack)
        text = sprintf('%s, line %d', problem.stack(1).name, problem.stack(1).line);
    end
end
