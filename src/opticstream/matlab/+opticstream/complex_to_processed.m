function complex_to_processed(source, outputs, settings)
% COMPLEX_TO_PROCESSED  Make volumes, surface and en face maps from a complex tile; outputs names their files.
    opticstream.write_products(opticstream.read_complex_tile(source, settings), outputs, settings);
end
