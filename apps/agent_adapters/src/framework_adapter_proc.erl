%% @doc What the kernel says of a process of this machine.
-module(framework_adapter_proc).

-export([state/1]).

%% @doc State of a host pid by `/proc/PID/stat'. A number is reused sooner or later: a hint, never a proof of death.
-spec state(non_neg_integer()) -> framework_adapter_liveness:process_state().
state(Pid) ->
    case file:read_file("/proc/" ++ integer_to_list(Pid) ++ "/stat") of
        {ok, Stat} -> letter(re:run(Stat, "\\) ([A-Z])", [{capture, [1], binary}]));
        {error, _} -> gone
    end.

-spec letter({match, [binary()]} | nomatch) -> framework_adapter_liveness:process_state().
letter({match, [<<"R">>]}) -> running;
letter({match, [<<"D">>]}) -> disk;
letter({match, [<<"T">>]}) -> stopped;
letter({match, [<<"t">>]}) -> stopped;
letter({match, [<<"Z">>]}) -> zombie;
letter({match, [<<"X">>]}) -> zombie;
letter({match, _}) -> sleeping;
letter(nomatch) -> gone.
