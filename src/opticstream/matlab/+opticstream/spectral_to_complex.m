function spectral_to_complex(source, outputs, settings)
% SPECTRAL_TO_COMPLEX  Make the complex tile outputs.complex from the raw spectra of a tile.
    J = opticstream.jones_from_spectra(opticstream.read_spectra(source, settings), settings);
    opticstream.write_complex_tile(outputs.complex, J, settings);
end
