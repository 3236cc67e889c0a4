%% @doc Waits for registered children of a supervisor that was killed.
%%
%% A supervisor that is killed brutally ends without its children; they follow by their links a moment later, and one that cleans up
%% takes its time. A new supervisor that started at once would meet their names, fail with `already_started', and spend its parent's
%% intensity on it. In the ordinary case there is none and nothing waits.
-module(orphans).

-export([await/1]).

%% Longer than any child's own shutdown; then it is killed.
-define(PATIENCE_MS, 5000).

%% @doc Returns when none of these names is registered. To be called in `init/1' of a supervisor of named children.
-spec await([atom()]) -> ok.
await(Names) ->
    lists:foreach(fun await_one/1, Names).

-spec await_one(atom()) -> ok.
await_one(Name) ->
    case whereis(Name) of
        undefined ->
            ok;
        Pid ->
            Monitor = monitor(process, Pid),
            receive
                {'DOWN', Monitor, process, _, _} -> ok
            after ?PATIENCE_MS ->
                true = exit(Pid, kill),
                receive {'DOWN', Monitor, process, _, _} -> ok end
            end
    end.
