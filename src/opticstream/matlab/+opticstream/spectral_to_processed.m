function spectral_to_processed(source, outputs, settings)
% SPECTRAL_TO_PROCESSED  Make volumes, surface and en face maps, and the complex tile if outputs names it, from spectra.
    J = opticstream.jones_from_spectra(opticstream.read_spectra(source, settings), settings);
    if isfield(outputs, 'complex')
        opticstream.write_complex_tile(outputs.complex, J, settings);
    end
    opticstream.write_products(J, outputs, settings);
end
