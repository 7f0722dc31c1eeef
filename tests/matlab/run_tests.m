function run_tests()
% RUN_TESTS  The tests of the functions of +opticstream, in MATLAB or Octave: run in this folder; an error ends it with status 1.
    addpath(fullfile(fileparts(mfilename('fullpath')), '..', '..', 'src', 'opticstream', 'matlab'));
    tests = {@halves_go_to_the_even_number, @axes_are_wrapped, @nifti_files_come_back, @a_nifti_header_of_another_byte_order_is_read, ...
             @packed_samples_are_unpacked, @a_mirror_is_found_at_its_depth, @complex_tiles_come_back, ...
             @intensity_and_retardance_are_those_of_the_formula, @the_edge_is_where_brightness_rises, @the_median_removes_a_spot, ...
             @the_sheet_ignores_a_bubble, @rises_are_found_in_tiles_of_many_voxels, ...
              @retardance_that_folds_is_unwrapped, @circles_give_axis_and_birefringence, ...
             @axes_are_found_from_two_beams, ...
             @a_turned_image_is_registered, @images_without_structure_are_refused, @one_bad_tile_does_not_stop_the_others, @functions_are_checked};
    failed = 0;
    for k = 1:numel(tests)
        name = strrep(func2str(tests{k}), '_', ' ');
        try
            tests{k}();
            printf_line('ok      %s', name);
        catch problem
            failed = failed + 1;
            printf_line('FAILED  %s: %s', name, problem.message);
        end
    end
    printf_line('%d passed, %d failed', numel(tests) - failed, failed);
    if failed > 0
        exit(1);
    end
end

function printf_line(varargin)
    fprintf([varargin{1} '\n'], varargin{2:end});
end

function same(one, other, tolerance)
    if nargin < 3
        tolerance = 0;
    end
    if ~isequal(size(one), size(other)) || any(abs(double(one(:)) - double(other(:))) > tolerance)
        error('expected %s, got %s', mat2str(double(other)), mat2str(double(one)));
    end
end

function s = settings()
    s = struct('samples', 256, 'channels', 2, 'a_lines', 3, 'b_lines', 2, 'raw_format', 'nifti', 'background', 'none', ...
               'flip_channel2', false, 'residual_background', false, 'zero_padding', 1, 'cut', 24, 'flip_z', true, ...
               'flip_phase', false, 'phase_offset_deg', 0, 'depth_step_um', 2.5, 'wavelength_um', 1.3, ...
               'voxel_size_mm', [0.01 0.01 0.0025], 'surface', 'gradient', 'surface_threshold_db', 55, 'offset', 0, ...
               'depth', 80, 'vectors', struct());
end

function halves_go_to_the_even_number()
    same(opticstream.round_even([0.5 1.5 2.5 -0.5 -1.5 1.2]), [0 2 2 0 -2 1]);
end

function axes_are_wrapped()
    same(opticstream.wrap_axis([-90 90 135 270]), [90 90 -45 90]);
end

function nifti_files_come_back()
    path = [tempname() ' ''ü.nii'];
    data = single(reshape(1:24, 2, 3, 4));
    opticstream.write_nifti(path, data, [0.01 0.01 0.0025]);
    [back, header] = opticstream.read_nifti(path);
    delete(path);
    same(back, data);
    same(header.shape, [2 3 4]);
end

function a_nifti_header_of_another_byte_order_is_read()
    path = [tempname() '.nii'];
    file = fopen(path, 'w', 'ieee-be');
    fwrite(file, 348, 'int32');
    fwrite(file, zeros(1, 36), 'uint8');
    fwrite(file, [1 3 1 1 1 1 1 1], 'int16');
    fwrite(file, zeros(1, 14), 'uint8');
    fwrite(file, [512 16], 'int16');
    fwrite(file, zeros(1, 34), 'uint8');
    fwrite(file, 352, 'single');
    fwrite(file, zeros(1, 240), 'uint8');
    fwrite(file, [1 2 65535], 'uint16');
    fclose(file);
    back = opticstream.read_nifti(path);
    delete(path);
    same(double(back(:)'), [1 2 65535]);
end

function packed_samples_are_unpacked()
    path = [tempname() '.raw'];
    file = fopen(path, 'w');
    fwrite(file, [188 58 18], 'uint8');  % BC 3A 12
    fclose(file);
    s = settings();
    s.samples = 2; s.a_lines = 1; s.channels = 1; s.b_lines = 1; s.raw_format = 'packed12';
    counts = opticstream.read_spectra(path, s);
    delete(path);
    same(double(counts(:)'), [hex2dec('ABC') hex2dec('123')]);
end

function a_mirror_is_found_at_its_depth()
    s = settings();
    counts = 2000 + 100 * cos(2 * pi * 40 * (0:255)' / 256);
    J = opticstream.profiles_from_spectra(counts, 1, s);
    [~, at] = max(abs(J));
    same([numel(J) at - 1 + s.cut], [104 40]);
end

function complex_tiles_come_back()
    s = settings();
    J = {complex(single(rand(5, 3, 2)), single(rand(5, 3, 2))), complex(single(rand(5, 3, 2)), single(rand(5, 3, 2)))};
    path = [tempname() '.nii'];
    opticstream.write_complex_tile(path, J, s);
    data = opticstream.read_nifti(path);
    back = opticstream.read_complex_tile(path, s);
    delete(path);
    same(size(data), [12 2 5]);
    same(data(1, 1, 5), real(J{1}(1, 1, 1)));  % depth is reversed
    same(abs(back{2} - J{2}), zeros(5, 3, 2));
end

function intensity_and_retardance_are_those_of_the_formula()
    J = {single(3 + 0i), single(4i)};
    same(opticstream.intensity_db(J), 13.9794, 1e-4);
    same(opticstream.retardance_deg({single(1), single(1i)}), 45, 1e-4);
    same(opticstream.orientation_deg({single(1i), single(1)}, settings()), 45, 1e-4);
    same(opticstream.intensity_db({single(0), single(0)}), 10 * log10(eps('single')), 1e-4);
end

function the_edge_is_where_brightness_rises()
    line = 10 * ones(40, 1, 'single');
    line(21:end) = 40;
    [largest, at] = max(opticstream.edge_response(line));
    same([at - 1 round(largest)], [20 11]);
end

function the_median_removes_a_spot()
    image = zeros(3, 3, 'single');
    image(2, 2) = 9;
    same(max(max(opticstream.median_3x3(image))), 0);
end

function the_sheet_ignores_a_bubble()
    tile = 40 * ones(24, 24, 120, 'single');
    tile(:, :, 61:end) = 60;
    tile(9:12, 9:12, 21:25) = 80;
    [surface, confidence] = opticstream.surface_sheet(tile);
    if any(abs(surface(:) - 60) > 1) || confidence(10, 10) >= confidence(1, 1)
        error('the surface runs from %g to %g', min(surface(:)), max(surface(:)));
    end
end

function rises_are_found_in_tiles_of_many_voxels()
    response = zeros(1000, 17000, 'single');  % more voxels than single precision can count
    response(41, :) = 1;
    index = opticstream.strongest_rise_near(response, 35 * ones(1, 17000, 'single'));
    same([min(index) max(index)], [40 40]);
end

function retardance_that_folds_is_unwrapped()
    true_deg = single((0:119)' * 1.5);
    measured = true_deg;
    measured(true_deg > 90) = 180 - true_deg(true_deg > 90);
    axis = 30 * ones(120, 1, 'single');
    axis(true_deg > 90) = -60;
    w.index = (1:120)' + (0:80) * 120;
    growing = opticstream.unwrapped_retardance(repmat(measured, [1 9 9]), repmat(axis, [1 9 9]), w);
    same(growing(101, 41), 150, 1);
end

function circles_give_axis_and_birefringence()
    retardance = 2 * pi * 0.004 * 2.5 / 1.3 * (0:99)';
    J = {single(sin(retardance) * exp(2i * deg2rad(30))), single(complex(cos(retardance)))};
    w.index = (1:81)';
    w.valid = true(81, 1);
    [orientation, birefringence] = opticstream.axis_and_birefringence(J, w, settings());
    same(orientation, 30, 0.01);
    same(birefringence, 0.004, 1e-5);
end

function axes_are_found_from_two_beams()
    g = deg2rad(-15);
    frames = cat(3, eye(3), [cos(g) 0 sin(g); 0 1 0; -sin(g) 0 cos(g)]);
    true_axis = [0.6 0.48 0.64];
    for beam = 1:2
        across = true_axis * frames(:, 1:2, beam);
        angle_deg(1, 1, beam) = rad2deg(atan2(across(2), across(1)));
        seen(1, 1, beam) = 1e-3 * sum(across.^2);
    end
    [solution, alternative] = opticstream.axis_from_projections(angle_deg, seen, frames);
    found = [solution(:)'; alternative(:)'];
    apart = min(sqrt(sum((abs(found * true_axis') ./ sqrt(sum(found.^2, 2)) - 1).^2, 2)));
    if ~(apart < 1e-6)
        error('no solution is near the truth: %s', mat2str(found));
    end
end

function given = two_images()
% Smooth spots, and the same ones turned by 3 degrees and shifted.
    [x, y] = ndgrid(0:119, 0:99);
    c = cosd(3);
    d = sind(3);
    given.true_matrix = [c -d; d c];
    given.true_offset = [6; -4];
    u = c * (x - 6) + d * (y + 4);
    v = -d * (x - 6) + c * (y + 4);
    given.fixed = spots(x, y);
    given.moving = spots(u, v);
    given.fixed_valid = true(size(x));
    given.moving_valid = true(size(x));
    given.scale_guess = [1 1];
end

function image = spots(x, y)
    image = zeros(size(x));
    for k = 1:40
        px = mod(37 * k, 131) - 5;
        py = mod(53 * k, 109) - 5;
        image = image + (1 + mod(k, 3)) * exp(-((x - px).^2 + (y - py).^2) / (2 * (4 + mod(k, 4))^2));
    end
end

function a_turned_image_is_registered()
    given = two_images();
    s = struct('transform', 'affine', 'bend_sigma_px', 0, 'smoothing_sigma_px', 1, 'max_rotation_deg', 8, 'max_pixels', 1e6);
    for freedom = {'affine', 'rigid'}
        s.transform = freedom{1};
        [matrix, offset, displacement] = opticstream.mapping_from_images(given, s);
        same(matrix, given.true_matrix, 2e-3);
        same(offset, given.true_offset, 0.1);
        same(size(displacement), [0 0]);
    end
end

function images_without_structure_are_refused()
    given = two_images();
    given.moving(:) = 3;
    s = struct('transform', 'affine', 'bend_sigma_px', 0, 'smoothing_sigma_px', 1, 'max_rotation_deg', 8, 'max_pixels', 1e6);
    try
        opticstream.mapping_from_images(given, s);
    catch problem
        same(strcmp(problem.identifier, 'opticstream:registration'), true);
        return
    end
    error('it was accepted');
end

function one_bad_tile_does_not_stop_the_others()
    folder = tempname();
    mkdir(folder);
    items = {};
    for k = 1:2
        step = struct('name', 'opticstream.write_json', 'source', [folder '/out.json'], 'outputs', struct());
        if k == 1
            step.name = 'opticstream.spectral_to_complex';
        end
        items{k} = struct('name', sprintf('tile %d', k), 'status', sprintf('%s/s%d.json', folder, k), 'steps', {{step}});
    end
    call = struct('paths', {{}}, 'vectors', '', 'settings', settings(), 'items', {items});
    opticstream.write_json([folder '/call.json'], call);
    opticstream.run_call([folder '/call.json']);
    first = opticstream.read_json([folder '/s1.json']);
    second = opticstream.read_json([folder '/s2.json']);
    confirm = exist('OCTAVE_VERSION', 'builtin');
    if confirm
        confirm_recursive_rmdir(false, 'local');
    end
    rmdir(folder, 's');
    same([first.ok second.ok], [false false]);  % write_json takes two arguments: an error of its own
    if isempty(strfind(first.message, 'out.json'))
        error('the message does not name the file: %s', first.message);
    end
end

function functions_are_checked()
    folder = tempname();
    mkdir(folder);
    call = struct('paths', {{}}, 'functions', {{'opticstream.find_surface', 'no_such_function_here'}}, ...
                  'answer', [folder '/answer.json']);
    opticstream.write_json([folder '/call.json'], call);
    opticstream.check_functions([folder '/call.json']);
    answer = opticstream.read_json([folder '/answer.json']);
    delete([folder '/call.json']);
    delete([folder '/answer.json']);
    rmdir(folder);
    found = opticstream.as_cells(answer.functions);
    same([found{1}.found found{1}.inputs found{1}.outputs found{2}.found], [1 2 3 0]);
end
