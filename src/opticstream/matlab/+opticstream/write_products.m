function write_products(J, outputs, settings)
% WRITE_PRODUCTS  Write the volumes and maps of complex profiles that outputs names.
    if ~settings.flip_z
        for c = 1:numel(J)
            J{c} = J{c}(end:-1:1, :, :);
        end
    end
    p.J = J;
    p.dBI = opticstream.intensity_db(J);
    if numel(J) == 2
        p.R3D = opticstream.retardance_deg(J);
        p.O3D = opticstream.orientation_deg(J, settings);
    end
    volumes = {'dBI', 'R3D', 'O3D'};
    for k = 1:3
        if isfield(outputs, volumes{k})
            opticstream.write_nifti(outputs.(volumes{k}), permute(p.(volumes{k}), [2 3 1]), settings.voxel_size_mm);
        end
    end
    [surface, unfiltered, confidence] = feval(settings.find_surface, permute(p.dBI, [2 3 1]), settings);
    maps = opticstream.enface_maps(p, surface, settings);
    maps.surf = surface;
    maps.surfraw = unfiltered;
    maps.confidence = confidence;
    names = fieldnames(maps);
    for k = 1:numel(names)
        if isfield(outputs, names{k})
            opticstream.write_nifti(outputs.(names{k}), maps.(names{k}), settings.voxel_size_mm);
        end
    end
end
