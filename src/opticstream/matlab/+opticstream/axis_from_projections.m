function [solution, alternative] = axis_from_projections(orientation_deg, birefringence, frames)
% AXIS_FROM_PROJECTIONS  Return the vectors r that best explain what beams saw, of the best and of the next branch.
%
%   Minimises sum_i |s_i m_i - P(r; k_i)|^2 over r and the signs s_i, with P(r; k) = (r - (k.r)k) sqrt(1 - (k.r)^2/|r|^2):
%   a trial over directions of the half sphere for each combination of signs, then damped Gauss-Newton steps on r.
    [A, B, beams] = size(orientation_deg);
    if beams < 2 || beams > 5
        error('opticstream:settings', 'the axis needs two to five beams, got %d', beams);
    end
    angle_of = reshape(double(orientation_deg), A * B, beams) * (pi / 180);
    amount = max(reshape(double(birefringence), A * B, beams), 0);
    valid = isfinite(angle_of) & isfinite(reshape(double(birefringence), A * B, beams));
    solution = nan(A * B, 3);
    alternative = nan(A * B, 3);
    patterns = unique(valid, 'rows');
    for k = 1:size(patterns, 1)
        used = find(patterns(k, :));
        if numel(used) < 2
            continue
        end
        members = find(all(valid == patterns(k, :), 2));
        for first = 1:4096:numel(members)
            some = members(first:min(first + 4095, numel(members)));
            [solution(some, :), alternative(some, :)] = solve(angle_of(some, used), amount(some, used), frames(:, :, used));
        end
    end
    solution = reshape(solution, A, B, 3);
    alternative = reshape(alternative, A, B, 3);
end

function [best, other] = solve(angle_of, amount, frames)
    [n, beams] = size(angle_of);
    measured = zeros(n, 3, beams);
    for i = 1:beams
        measured(:, :, i) = (amount(:, i) .* cos(angle_of(:, i))) * frames(:, 1, i)' ...
                            + (amount(:, i) .* sin(angle_of(:, i))) * frames(:, 2, i)';
    end
    trial = half_sphere(800);
    seen = zeros(size(trial, 1), 3, beams);
    energy = zeros(size(trial, 1), 1);
    for i = 1:beams
        seen(:, :, i) = projection(trial, frames(:, 3, i)');
        energy = energy + sum(seen(:, :, i).^2, 2);
    end
    seen = seen ./ sqrt(energy);
    branches = 2^(beams - 1);
    r = zeros(n, 3, branches);
    cost = zeros(n, branches);
    for branch = 0:branches - 1
        sign_of = 1 - 2 * [0 bitget(branch, 1:beams - 1)];
        turned = measured;
        for i = 1:beams
            turned(:, :, i) = sign_of(i) * measured(:, :, i);
        end
        match = reshape(turned, n, 3 * beams) * reshape(seen, [], 3 * beams)';  % for all pixels and directions
        [highest, at] = max(match, [], 2);
        [lowest, at_lowest] = min(match, [], 2);
        against = -lowest > highest;
        at(against) = at_lowest(against);
        highest(against) = lowest(against);
        length_of = highest ./ sqrt(energy(at));
        [r(:, :, branch + 1), cost(:, branch + 1)] = descend(trial(at, :) .* length_of, turned, frames);
    end
    [~, order] = sort(cost, 2);
    best = pick(r, order(:, 1));
    other = pick(r, order(:, 2));
    same = abs(sum(best .* other, 2)) > cosd(3) * sqrt(sum(best.^2, 2) .* sum(other.^2, 2));
    other(same, :) = NaN;
end

function chosen = pick(r, branch)
    n = size(r, 1);
    chosen = zeros(n, 3);
    for axis = 1:3
        part = reshape(r(:, axis, :), n, []);
        chosen(:, axis) = part(sub2ind(size(part), (1:n)', branch));
    end
end

function directions = half_sphere(count)
    i = (0:count - 1)' + 0.5;
    z = 1 - i / count;
    turn = pi * (1 + sqrt(5)) * i;
    across = sqrt(1 - z.^2);
    directions = [across .* cos(turn), across .* sin(turn), z];
end

function p = projection(r, k)
    along = r * k';
    p = (r - along * k) .* sqrt(max(1 - along.^2 ./ max(sum(r.^2, 2), realmin), 0));
end

function [r, cost] = descend(r, measured, frames)
% Damped Gauss-Newton steps on the vectors of all pixels at once.
    [n, ~, beams] = size(measured);
    damping = 1e-3 * ones(n, 1);
    cost = misfit(r, measured, frames);
    for turn = 1:40
        normal = zeros(n, 6);  % 11 12 13 22 23 33
        right = zeros(n, 3);
        for i = 1:beams
            k = frames(:, 3, i)';
            square = max(sum(r.^2, 2), realmin);
            along = r * k';
            sine = sqrt(max(1 - along.^2 ./ square, 1e-12));
            across = r - along * k;
            residual = measured(:, :, i) - across .* sine;
            slope = -(along ./ square) .* (k - (along ./ square) .* r) ./ sine;  % gradient of the sine
            columns = cell(1, 3);
            unit = eye(3);
            for c = 1:3
                columns{c} = (unit(c, :) - k(c) * k) .* sine + across .* slope(:, c);
            end
            at = 0;
            for a = 1:3
                for b = a:3
                    at = at + 1;
                    normal(:, at) = normal(:, at) + sum(columns{a} .* columns{b}, 2);
                end
                right(:, a) = right(:, a) + sum(columns{a} .* residual, 2);
            end
        end
        scale = (normal(:, 1) + normal(:, 4) + normal(:, 6)) / 3 + realmin;
        m = normal;
        m(:, [1 4 6]) = m(:, [1 4 6]) + damping .* scale;
        c11 = m(:, 4) .* m(:, 6) - m(:, 5).^2;
        c12 = m(:, 3) .* m(:, 5) - m(:, 2) .* m(:, 6);
        c13 = m(:, 2) .* m(:, 5) - m(:, 3) .* m(:, 4);
        c22 = m(:, 1) .* m(:, 6) - m(:, 3).^2;
        c23 = m(:, 2) .* m(:, 3) - m(:, 1) .* m(:, 5);
        c33 = m(:, 1) .* m(:, 4) - m(:, 2).^2;
        determinant = m(:, 1) .* c11 + m(:, 2) .* c12 + m(:, 3) .* c13;
        step = [c11 .* right(:, 1) + c12 .* right(:, 2) + c13 .* right(:, 3), ...
                c12 .* right(:, 1) + c22 .* right(:, 2) + c23 .* right(:, 3), ...
                c13 .* right(:, 1) + c23 .* right(:, 2) + c33 .* right(:, 3)] ./ determinant;
        step(~isfinite(step)) = 0;
        tried = r + step;
        reached = misfit(tried, measured, frames);
        better = reached < cost;
        r(better, :) = tried(better, :);
        cost(better) = reached(better);
        damping(better) = damping(better) / 5;
        damping(~better) = damping(~better) * 4;
        if all(~better | sum(step.^2, 2) < 1e-14 * max(sum(r.^2, 2), realmin)) && turn > 8
            break
        end
    end
end

function cost = misfit(r, measured, frames)
    cost = zeros(size(r, 1), 1);
    for i = 1:size(measured, 3)
        cost = cost + sum((measured(:, :, i) - projection(r, frames(:, 3, i)')).^2, 2);
    end
end
