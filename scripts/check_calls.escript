#!/usr/bin/env escript
%% -*- erlang -*-
%%! -noinput
%% The dependency rule, checked on the call graph: an application calls itself and those below it, never one above.
%% What must travel upward is a message to the process that leased the thing. Each application file must also name
%% every application that it calls.

-mode(compile).

%% From the bottom to the top. Two on one level do not call each other.
levels() ->
    [[agent_core], [agent_native], [agent_store], [agent_providers, agent_memory], [agent_adapters],
     [agent_execution], [agent_gateway]].

main(_) ->
    Root = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    Ranks = [{App, Rank} || {Rank, Apps} <- lists:zip(lists:seq(1, length(levels())), levels()), App <- Apps],
    Present = [{App, Dir} || {App, _} <- Ranks, Dir <- [filename:join([Root, "_build/default/lib", App])],
                             filelib:is_dir(filename:join(Dir, "ebin"))],
    Unranked = [App || Dir <- filelib:wildcard(filename:join(Root, "apps/*")),
                       App <- [list_to_atom(filename:basename(Dir))], not lists:keymember(App, 1, Ranks)],
    {ok, _} = xref:start(rules),
    ok = xref:set_default(rules, [{warnings, false}, {verbose, false}]),
    [{ok, _} = xref:add_application(rules, Dir, [{name, App}]) || {App, Dir} <- Present],
    {ok, Edges} = xref:q(rules, "AE"),
    Upward = [{From, To} || {From, To} <- Edges, From =/= To,
                            {_, A} <- [lists:keyfind(From, 1, Ranks)], {_, B} <- [lists:keyfind(To, 1, Ranks)], A =< B],
    lists:foreach(fun({From, To}) -> explain(From, To) end, Upward),
    Undeclared = [{From, To} || {From, To} <- Edges, From =/= To, lists:keymember(To, 1, Present),
                                not lists:member(To, declared(From, Present))],
    [io:format("~s calls ~s but its application file does not name it~n", [F, T]) || {F, T} <- Undeclared],
    [io:format("apps/~s has no level in scripts/check_calls.escript~n", [App]) || App <- Unranked],
    case {Present, Upward, Undeclared, Unranked} of
        {[], _, _, _} -> io:format("nothing is compiled~n"), halt(1);
        {_, [], [], []} -> io:format("~b applications call downward only~n", [length(Present)]);
        _ -> halt(1)
    end.

declared(App, Present) ->
    {App, Dir} = lists:keyfind(App, 1, Present),
    {ok, [{application, App, Keys}]} = file:consult(filename:join([Dir, "ebin", atom_to_list(App) ++ ".app"])),
    proplists:get_value(applications, Keys, []) ++ proplists:get_value(included_applications, Keys, []).

explain(From, To) ->
    {ok, Calls} = xref:q(rules, lists:flatten(io_lib:format("E | ~s : App || ~s : App", [From, To]))),
    [io:format("~s:~s/~b calls upward: ~s:~s/~b~n", [M, F, A, M2, F2, A2]) || {{M, F, A}, {M2, F2, A2}} <- Calls].
