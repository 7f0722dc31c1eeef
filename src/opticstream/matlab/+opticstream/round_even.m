function rounded = round_even(values)
% ROUND_EVEN  Round to whole numbers, halves to the even one, as the native engine does.
    rounded = round(values);
    half = abs(values - fix(values)) == 0.5;
    rounded(half) = 2 * round(values(half) / 2);
end
